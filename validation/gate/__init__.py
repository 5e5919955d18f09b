"""What judges a change: the plan of a check, its verdict, the canary and what may loosen it."""
