"""The cases of the contract suite, by topic."""
