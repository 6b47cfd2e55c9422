"""From a base model to one that follows instructions and reasons: SFT, DPO, policy gradients."""
