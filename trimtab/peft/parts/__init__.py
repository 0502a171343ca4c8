"""What methods attach to a live model, and where: parts, their way back, and the model's sublayers."""
