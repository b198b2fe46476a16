"""An engine of several ranks: where they run, what they say to each other, and how layers are divided among them."""
