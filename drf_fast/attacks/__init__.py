"""The smoothed classifier attacked: the adversaries, their judge, their log, and what they broke.

A certificate says what no attack can do, an attack what one did; between the two lies the truth.
"""
