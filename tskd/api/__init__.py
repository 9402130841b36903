"""The Python interface: what `import tskd` offers. Each name is imported when it is first asked for."""
