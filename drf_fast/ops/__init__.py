"""The operations as torch knows them: schemas, argument checks, backward passes."""
