"""Stage `calibrate`: the user's sample inputs, made to fit the model, and statistics over them."""
