"""Several GPUs as one: so far what to plan them with; nothing here moves a byte between devices yet."""
