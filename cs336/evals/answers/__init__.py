"""Grading of mathematical answers: is the model's final answer the right one?"""
