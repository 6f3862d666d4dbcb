"""What strangers send to each door: the page, the service, the command line, production. Bounded in time and memory."""
