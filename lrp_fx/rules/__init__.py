"""Rules: the rule table, the rule sets that choose from it, and the functions whose backward is a rule."""
