"""Reads video files, and cuts their frames into windows of crops for the network."""
