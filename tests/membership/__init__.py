"""Membership and connecting: that no join and no leave is missed, under load, on both ways of knowing the members."""
