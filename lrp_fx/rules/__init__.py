"""Rules: the rule sets a user chooses from, and the functions whose backward is a rule."""
