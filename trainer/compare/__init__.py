"""Ways to adapt a base side by side: arms, their runs, what they scored, what that proves."""
