"""What adaptive methods need to know beforehand: searched for, or measured on a set of images.

Named for what it makes, since `secateur.calibrate` is the function that searches.
"""
