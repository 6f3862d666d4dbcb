"""The page's state: the server's status, the request queue, live sessions and taught signs."""
