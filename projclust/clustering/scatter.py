"""The sufficient statistics of a fit, which are the mass, mean and scatter of every cluster, and the fit itself."""

from contextlib import suppress

import torch
from torch import Tensor

from projclust.clustering.reassignment import Leverage
from projclust.clustering.rows import Rows
from projclust.clustering.subspaces import SMALL, Subspaces, centred_blocks, orthonormal_rows, rows_by_cluster

# Gram matrices are kept while all of them take at most this share of the table's bytes. Beyond it the clusters have so
# few rows for their width that products with the rows themselves cost no more.
_LARGEST_SHARE = 0.5

# The lower triangle of a Gram matrix is computed in strips of so many rows. With 768 columns that leaves out three
# eighths of the products.
_STRIP = 192


class ClusterScatter:
    """The mass, mean and scatter of every cluster over all processes, updated as rows change their labels.

    Sums are float64, over products in the working dtype. The Gram matrix of a cluster is updated by the rows that
    joined and left it, not computed anew, because after a few steps only one row in a hundred moves. Where the weights
    of the rows hold for one step only, `keep_grams` is False: keeping matrices would not pay.
    """

    def __init__(self, rows: Rows, labels: Tensor, n_clusters: int, affine: bool, keep_grams: bool = True) -> None:
        d, k = rows.dim, n_clusters
        self.rows, self.n_clusters = rows, n_clusters
        self._owned = range(k)[rows.collective.shard(k)]  # the clusters whose scatter and basis this process computes
        self._set_labels(labels, rows.gather(labels))
        self.sums = rows.norms.new_zeros(k, d, dtype=torch.float64) if affine else None  # of each cluster's rows
        # This process keeps the Gram matrices of the clusters it owns, (owned, d, d); None where there is no room.
        room = _LARGEST_SHARE * rows.total * d * rows.table.itemsize
        keep_grams = keep_grams and 8 * k * d * d <= room
        self.grams = rows.norms.new_zeros(len(self._owned), d, d, dtype=torch.float64) if keep_grams else None
        self._add(rows_by_cluster(self._all_labels, k))

    def update(self, labels: Tensor) -> int:
        """Take over new labels, and return how many rows of all processes have moved."""
        new, old = self.rows.gather(labels), self._all_labels
        moved = (new != old).nonzero().squeeze(1)
        joined, left = (rows_by_cluster(where[moved], self.n_clusters) for where in (new, old))
        self._add([moved[members] for members in joined], [moved[members] for members in left])
        self._set_labels(labels, new)
        return len(moved)

    def _set_labels(self, labels: Tensor, all_labels: Tensor) -> None:
        """Keep labels, and each cluster's mass and energy, which every process sums over all rows in no time."""
        self.labels, self._all_labels = labels, all_labels
        rows = self.rows.whole
        weights = rows.weighted(torch.ones_like(rows.norms)).double()
        sums = torch.stack([weights, weights * rows.norms])
        members = rows_by_cluster(all_labels, self.n_clusters)
        # (k,) the sum of the weights w in each cluster, and that of w |x|^2.
        self._masses, self._energies = torch.stack([sums[:, which].sum(1) for which in members], 1)

    def _add(self, joined: list[Tensor], left: list[Tensor] | None = None) -> None:
        """Add the rows that joined each cluster, by their numbers in the whole matrix, and subtract those that left.

        Every process reads all rows of the clusters it owns, its own and others', so that no matrices travel, and so
        that the sums are the same to the last bit however many processes there are.
        """
        rows, owned = self.rows.whole, self._owned
        for cluster, members in enumerate(joined):
            gram = self.grams[cluster - owned.start] if self.grams is not None and cluster in owned else None
            if gram is None and self.sums is None:
                continue
            which = members if left is None else torch.cat([members, left[cluster]])
            exact = torch.float64 if len(which) * rows.dim <= SMALL else None
            for where, block in rows.blocks(rows.dim, which, exact):
                weighted = rows.weighted(block, which[where])
                if left is not None:
                    joining = max(len(members) - where.start, 0)
                    weighted = torch.cat([weighted[:joining], -weighted[joining:]])
                if self.sums is not None:
                    self.sums[cluster] += weighted.sum(0, dtype=torch.float64)
                if gram is not None and left is None:
                    _add_lower_triangle(gram, weighted, block)
                elif gram is not None:
                    gram += weighted.T @ block
            if gram is not None and left is None:
                gram.copy_(gram.tril() + gram.tril(-1).T)

    def means(self) -> Tensor | None:
        """(k, d) float64 mean of each cluster, zero for one without mass; None for linear subspaces."""
        if self.sums is None:
            return None
        return torch.where(self._masses > 0, 1 / self._masses, 0).unsqueeze(1) * self.sums

    def leverage(self, energies: Tensor) -> Leverage:
        """The leverage of rows in subspaces whose directions capture `energies` (k, j), for `propose_moves`."""
        return Leverage.of(energies, self._centred_totals(), self._masses, self.rows.dim, self.sums is not None)

    def _centred_totals(self) -> Tensor:
        """(k,) float64 the energy that there is to be captured, which is the sum of w |x - mean|^2 in each cluster."""
        means = self.means()
        return self._energies if means is None else self._energies - self._masses * means.square().sum(1)

    def iterate(self, subspaces: Subspaces, steps: int = 1) -> tuple[Subspaces, Tensor, float]:
        """Take steps of orthogonal iteration on every cluster's scatter S: the rows of ``V S``, made orthonormal.

        With the labels as they are, no step ever raises the cost. A step takes a fraction of the time of an
        eigendecomposition, and all leading parts of the basis converge at once. Returns better subspaces of the same
        ranks, with the clusters' means; (k, j) the energy that each direction of the bases before the last step
        captures; and the cost of those bases with these means and labels.
        """
        means, totals = self.means(), self._centred_totals()
        collective, bases = self.rows.collective, subspaces.bases
        owned = collective.shard(self.n_clusters)
        energies = torch.zeros(bases.shape[:2], dtype=torch.float64, device=self.rows.device)
        for step in range(1, steps + 1):
            given, products = bases[owned], self._products(bases, means)[owned]
            if step == steps:
                # The squared lengths are 1 but for rounding, which would show in a cost that hardly falls.
                energies[owned] = (given * products).sum(2, dtype=torch.float64)
                energies[owned] /= given.square().sum(2, dtype=torch.float64)
            bases = torch.zeros_like(bases)
            bases[owned] = orthonormal_rows(products)
            if step == steps or self.grams is None:  # with Gram matrices, only the owner of a basis needs it meanwhile
                collective.all_gather(bases)
        collective.all_gather(energies)
        cost = max(float(totals.sum()) - captured_energy(energies, subspaces.ranks), 0.0)
        means = None if means is None else means.to(bases.dtype)
        return Subspaces(bases, means, subspaces.ranks), energies, cost

    def _products(self, bases: Tensor, means: Tensor | None) -> Tensor:
        """(k, j, d) each basis times its cluster's scatter, at least for the clusters that this process owns."""
        products = torch.zeros_like(bases)
        if self.grams is not None:
            dtype = torch.float64 if bases[0].numel() <= SMALL else bases.dtype
            for cluster, scatter in zip(self._owned, self.grams, strict=True):
                if means is not None:
                    scatter = scatter - self._masses[cluster] * torch.outer(means[cluster], means[cluster])
                products[cluster] = (bases[cluster].to(dtype) @ scatter.to(dtype)).to(bases.dtype)
            return products
        for cluster, members in enumerate(rows_by_cluster(self.labels, self.n_clusters)):
            for which, centred in centred_blocks(self.rows, members, means, cluster):
                products[cluster] += self.rows.weighted(centred @ bases[cluster].T, which).T @ centred
        return self.rows.collective.all_reduce(products)


def captured_energy(energies: Tensor, ranks: list[int]) -> float:
    """The part of energies (k, j) that the leading directions of all clusters capture."""
    return float(sum(energies[cluster, :rank].sum() for cluster, rank in enumerate(ranks)))


def fit_subspaces(
    rows: Rows, labels: Tensor, n_clusters: int, rank: int, affine: bool = False
) -> tuple[Subspaces, Tensor]:
    """The subspaces of one rank with the least weighted squared error, computed in float64 throughout.

    With them come the spectra (k, d) float64, which are all eigenvalues of each cluster's scatter, largest first.
    """
    d, collective, whole = rows.dim, rows.collective, rows.whole
    bases = torch.zeros(n_clusters, rank, d, dtype=rows.dtype, device=rows.device)
    spectra = torch.zeros(n_clusters, d, dtype=torch.float64, device=rows.device)
    means = torch.zeros(n_clusters, d, dtype=torch.float64, device=rows.device) if affine else None
    all_labels = rows.gather(labels)
    # One Gram matrix at a time, so that many clusters need no more memory than one; each process fits those it owns.
    for cluster in range(n_clusters)[collective.shard(n_clusters)]:
        members = (all_labels == cluster).nonzero().squeeze(1)
        gram = torch.zeros(d, d, dtype=torch.float64, device=rows.device)
        total = torch.zeros(d, dtype=torch.float64, device=rows.device)
        for where, block in whole.blocks(d, members, torch.float64):
            weighted = whole.weighted(block, members[where])
            _add_lower_triangle(gram, weighted, block)  # the eigensolver reads no more
            total += weighted.sum(0)
        mass = len(members) if whole.weights is None else whole.weights[members].sum(dtype=torch.float64)
        if means is not None and mass > 0:
            means[cluster] = total / mass
            gram -= mass * torch.outer(means[cluster], means[cluster])
        values, vectors = _eigenvectors(gram)
        bases[cluster] = vectors[:, d - rank :].flip(1).T
        spectra[cluster] = values.flip(0).clamp_(min=0)
    means = None if means is None else collective.all_gather(means).to(rows.dtype)
    return Subspaces.of(collective.all_gather(bases), means), collective.all_gather(spectra)


def _add_lower_triangle(gram: Tensor, weighted: Tensor, block: Tensor) -> None:
    """Add the symmetric matrix ``weighted.T @ block`` in strips that end at the diagonal or a little right of it."""
    for last in range(_STRIP, len(gram) + _STRIP, _STRIP):
        strip = slice(last - _STRIP, last)
        gram[strip, :last] += weighted[:, strip].T @ block[:, :last]


def _eigenvectors(gram: Tensor) -> tuple[Tensor, Tensor]:
    """The eigenvalues, ascending, and orthonormal eigenvectors of a symmetric float64 matrix."""
    # In rare cases GPU eigensolvers have failed, or returned vectors that are not orthonormal. Then the CPU takes over.
    if gram.is_cuda:
        with suppress(torch.linalg.LinAlgError):  # type: ignore[attr-defined]
            values, vectors = torch.linalg.eigh(gram)
            identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
            if (vectors.T @ vectors - identity).abs().max() < 1e-9:
                return values, vectors
    values, vectors = torch.linalg.eigh(gram.cpu())
    return values.to(gram.device), vectors.to(gram.device)
