"""What the machine gives a process: memory, processors and sockets."""
