"""The configuration: root schema, checks across groups, composing with Hydra."""
