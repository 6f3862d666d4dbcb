"""The animated demo signer, and the training of its checkpoint."""
