"""Attacks on a smoothed classifier: the searches, their evaluation by PREDICT, their log.

Certified accuracy is a lower bound of robust accuracy, accuracy under attack an upper bound.
"""
