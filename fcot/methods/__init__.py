"""The methods: how a student is trained, or prompted without training, and how its answers are formatted."""
