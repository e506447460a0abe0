"""The operations as torch sees them: schemas, argument checks, backward passes."""
