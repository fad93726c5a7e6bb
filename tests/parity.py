"""NumPy transcriptions of the update rules, written from the equations and nothing else."""

from __future__ import annotations

import numpy as np


class NumpyCVAdam:
    """Section 2 of the method: one tensor, float64, the noise given from outside."""

    def __init__(self, weight, *, num_data, lr, betas, dual_lr, weight_decay, temperature):
        self.w, self.v, self.rho = weight.copy(), np.zeros_like(weight), np.zeros_like(weight)
        self.num_data, self.lr, self.betas, self.dual_lr = num_data, lr, betas, dual_lr
        self.weight_decay, self.k = weight_decay, np.sqrt(temperature / num_data)
        self.previous = np.zeros_like(weight)

    def step(self, gradient, noise):
        beta1, beta2 = self.betas
        delta_t = np.sqrt(self.lr)
        alpha = self.k * delta_t**1.5
        tau = 1 / (1 + np.exp(-self.rho))
        self.rho = self.rho + self.dual_lr * (
            1 / (self.num_data * tau) - alpha**2 * self.weight_decay * tau - alpha * self.previous * gradient
        )
        tau = 1 / (1 + np.exp(-self.rho))
        self.v = (
            beta1 * self.v
            - beta2 * delta_t**2 * (gradient + self.weight_decay * self.w)
            + np.sqrt(2 + 2 * beta1**2) * self.k * delta_t**1.5 * noise
        )
        self.w = self.w + tau * self.v
        self.previous = noise
