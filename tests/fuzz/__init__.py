"""Every input path under random bytes. ``make fuzz`` runs these for much longer, with the profile ``fuzz``."""
