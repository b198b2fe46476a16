"""These tests run tile programs in Helion's interpreter: it must be told before any kernel is decorated."""

import os

os.environ["HELION_INTERPRET"] = "1"
