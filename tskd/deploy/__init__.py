"""What is shipped, and what runs it: the bundle, its network, and masks for files."""
