"""Work done before serving, never while serving: cross-compiling every tile program, on a machine that needs no GPU."""
