"""The worker of a CPU, and all choosing of tokens that happens on the host, for either worker."""
