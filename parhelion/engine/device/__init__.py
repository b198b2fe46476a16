"""The worker of a GPU: how steps get there, what it keeps of every request, and what is captured."""
