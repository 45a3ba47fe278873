"""What the tasks share: their contract, the table behind metrics of class maps, pictures."""
