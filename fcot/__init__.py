"""fcot: distill the chain-of-thought reasoning of a large teacher into a small student, and measure what helped."""

__version__ = "0.1.0"
