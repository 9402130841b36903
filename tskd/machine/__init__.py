"""What the machine gives a process: memory, processors, sockets and files."""
