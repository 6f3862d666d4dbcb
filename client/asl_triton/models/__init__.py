"""What is served: the contract of a model, its folder, its known answers, and a server's status."""
