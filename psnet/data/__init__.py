"""Training data: labelled photographs, photographing them anew, editing their regions."""
