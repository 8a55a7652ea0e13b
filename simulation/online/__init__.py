"""The online loop: devices recommend to simulated users, log what is clicked, adapt, and the federation learns.

``agents`` is what acts, ``journal`` what a device writes down, ``session`` one agent among all users, ``arms`` the
federations and yardsticks that are compared, ``run`` a whole experiment on disk.
"""
