"""What the stages that look at data share: one streaming pass, its costs, and two models walked side by side."""
