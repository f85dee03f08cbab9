"""Looking at methods and policies without training: gradient fields, and the credit that each token gets."""
