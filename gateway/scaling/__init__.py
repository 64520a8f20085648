"""How many verifiers and drafters there should be, by what the fleet says of itself."""
