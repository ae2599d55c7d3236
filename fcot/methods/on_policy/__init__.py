"""On-policy distillation: the student writes samples, and a teacher's distributions on their tokens are its targets."""
