"""Small models of the faithfulness study, trained from data that ship in packages: run by `tools/train`."""
