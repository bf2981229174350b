"""Applications that show how transact is used."""
