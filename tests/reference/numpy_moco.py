"""MoCo of a linear encoder in float64 NumPy, gradients by hand (arXiv 1911.05722, alg. 1)."""

import numpy as np


def unit(z):
    return z / np.sqrt((z**2).sum(axis=1, keepdims=True))


class LinearMoCo:
    """q = (x W + b) / |x W + b|; SGD with momentum, decay on W only."""

    def __init__(self, weight, bias, queue, momentum, temperature, rate, sgd_momentum, decay):
        self.query = [weight.astype(np.float64), bias.astype(np.float64)]
        self.key = [array.copy() for array in self.query]
        self.queue = queue.astype(np.float64)
        self.pointer = 0
        self.m, self.temperature = momentum, temperature
        self.rate, self.sgd_momentum, self.decay = rate, sgd_momentum, decay
        self.velocity = [np.zeros_like(array) for array in self.query]

    def contrast(self, x_q, x_k):
        """(logits, keys, mean loss, gradients of W and b)."""
        (weight, bias), size = self.query, len(x_q)
        z = x_q @ weight + bias
        q = unit(z)
        k = unit(x_k @ self.key[0] + self.key[1])
        logits = np.empty((size, 1 + self.queue.shape[1]))
        for i in range(size):
            logits[i, 0] = q[i] @ k[i] / self.temperature
            for j in range(self.queue.shape[1]):
                logits[i, 1 + j] = q[i] @ self.queue[:, j] / self.temperature
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        loss = -np.log(shares[:, 0]).mean()
        d_logits = shares.copy()
        d_logits[:, 0] -= 1
        d_logits /= size * self.temperature
        d_q = d_logits[:, :1] * k + d_logits[:, 1:] @ self.queue.T
        d_z = d_q - q * (q * d_q).sum(axis=1, keepdims=True)
        d_z /= np.sqrt((z**2).sum(axis=1, keepdims=True))
        return logits, k, loss, [x_q.T @ d_z, d_z.sum(axis=0)]

    def step(self, x1, x2, symmetric):
        """(loss, logits) of a step, with everything moved on."""
        for own, other in zip(self.key, self.query):
            own[...] = self.m * own + (1 - self.m) * other
        logits, keys, loss, grads = self.contrast(x1, x2)
        if symmetric:
            more, more_keys, more_loss, more_grads = self.contrast(x2, x1)
            logits, keys = np.vstack([logits, more]), np.vstack([keys, more_keys])
            loss += more_loss
            grads = [a + b for a, b in zip(grads, more_grads)]
        for key in keys:
            self.queue[:, self.pointer] = key
            self.pointer = (self.pointer + 1) % self.queue.shape[1]
        grads[0] = grads[0] + self.decay * self.query[0]
        for value, velocity, grad in zip(self.query, self.velocity, grads):
            velocity[...] = self.sgd_momentum * velocity + grad
            value -= self.rate * velocity
        return loss, logits
