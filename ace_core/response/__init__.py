"""The response of an emulator to a perturbed sea surface: paired rollouts, differenced means, known truth beside them."""
