"""What the page keeps: the server's status, the queue of requests, live sessions."""
