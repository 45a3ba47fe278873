"""What the families share: their contract, the form in which a network is deployed, weights from elsewhere."""
