"""Several engines behind one front end: which one takes a request, and what becomes of one that ends."""
