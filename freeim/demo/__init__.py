"""A chat to look at: ``python -m freeim.demo`` (``pip install "freeim[demo]"``).

It shows the division of labour that freeim is about. The node only pushes; all that is business (who somebody is, who
may say what to whom, files) is in this small web app, which can be restarted in the middle of a chat.
"""
