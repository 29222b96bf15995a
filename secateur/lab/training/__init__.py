"""How the lab's models were trained."""
