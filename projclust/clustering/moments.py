"""What fitting subspaces needs to know of the rows: mass, mean and scatter of every cluster."""

import torch
from torch import Tensor

from .moves import Leverage
from .rows import Rows
from .subspaces import SMALL, Subspaces, centred_blocks, orthonormal_rows, rows_by_cluster

# Gram matrices are kept while all of them take at most this share of the table's bytes. Beyond it the clusters have so
# few rows, for their width, that multiplying with the rows themselves costs no more.
_LARGEST_SHARE = 0.5

# Rows of a strip of a Gram matrix. Of 768, strips of 192 leave out three eighths of the products.
_STRIP = 192


class Moments:
    """Moments of every cluster's rows, of all processes, which follow the rows as they move between clusters.

    Sums are float64, of products in the working dtype. The Gram matrix of a cluster is changed by the rows that came
    and went, not made anew: after a few steps only one row in a hundred moves.

    Args:
        rows: this process's rows.
        labels: (n,) int64, the cluster of each.
        n_clusters: k.
        affine: whether the subspaces have means.
        keep_grams: False where the weights of `rows` are for one step only, so that keeping anything does not pay.
    """

    def __init__(self, rows: Rows, labels: Tensor, n_clusters: int, affine: bool, keep_grams: bool = True) -> None:
        d, k = rows.dim, n_clusters
        self.rows, self.n_clusters = rows, n_clusters
        self._take(labels, rows.gather(labels))
        # First moments (k, d); None for linear subspaces.
        self.firsts = rows.norms.new_zeros(k, d, dtype=torch.float64) if affine else None
        # Gram matrices of this process's share of the clusters, (share, d, d); None where there is no room for all.
        share = range(k)[rows.team.share(k)]
        room = _LARGEST_SHARE * rows.total * d * rows.table.itemsize
        keep_grams = keep_grams and 8 * k * d * d <= room
        self.grams = rows.norms.new_zeros(len(share), d, d, dtype=torch.float64) if keep_grams else None
        self._add(rows_by_cluster(self._all_labels, k))

    def move(self, labels: Tensor) -> int:
        """Take over new labels. Returns how many rows, of all processes, have moved."""
        new, old = self.rows.gather(labels), self._all_labels
        moved = (new != old).nonzero().squeeze(1)
        come, gone = (rows_by_cluster(where[moved], self.n_clusters) for where in (new, old))
        self._add([moved[members] for members in come], [moved[members] for members in gone])
        self._take(labels, new)
        return len(moved)

    def _take(self, labels: Tensor, all_labels: Tensor) -> None:
        """Keep labels, and the sums over each cluster: every process makes them of all rows, which takes no time."""
        self.labels, self._all_labels = labels, all_labels
        rows = self.rows.whole
        weights = torch.ones_like(rows.norms) if rows.weights is None else rows.weights
        sums = torch.stack([weights.double(), weights.double() * rows.norms])
        members = rows_by_cluster(all_labels, self.n_clusters)
        # (k,) sum of the weights w in each cluster, and of w |x|^2.
        self._masses, self._energies = torch.stack([sums[:, which].sum(1) for which in members], 1)

    def _add(self, come: list[Tensor], gone: list[Tensor] | None = None) -> None:
        """Add the rows (their numbers among all) that came to each cluster, and take away those that have gone.

        Every process reads the rows of all that concern its own clusters, so that no matrices travel, and so that the
        sums are the same, to the last bit, however many processes there are.
        """
        rows, k = self.rows.whole, self.n_clusters
        share = range(k)[self.rows.team.share(k)]
        for cluster, members in enumerate(come):
            gram = self.grams[cluster - share.start] if self.grams is not None and cluster in share else None
            if gram is None and self.firsts is None:
                continue
            which = members if gone is None else torch.cat([members, gone[cluster]])
            exact = torch.float64 if len(which) * rows.dim <= SMALL else None
            for where, block in rows.blocks(rows.dim, which, exact):
                weighted = rows.weighted(block, which[where])
                if gone is not None:
                    signs = torch.ones_like(weighted[:, :1])
                    signs[max(len(members) - where.start, 0) :] = -1
                    weighted = weighted * signs
                if self.firsts is not None:
                    self.firsts[cluster] += weighted.sum(0, dtype=torch.float64)
                if gram is not None and gone is None:
                    _add_lower_triangle(gram, weighted, block)
                elif gram is not None:
                    gram += weighted.T @ block
            if gram is not None and gone is None:
                gram.copy_(gram.tril() + gram.tril(-1).T)

    def means(self) -> Tensor | None:
        """(k, d) float64 mean of each cluster, zero for one without mass; None for linear subspaces."""
        if self.firsts is None:
            return None
        return torch.where(self._masses > 0, 1 / self._masses, 0).unsqueeze(1) * self.firsts

    def leverage(self, energies: Tensor) -> Leverage:
        """Of subspaces whose directions capture `energies` (k, j), for `look_at_all`."""
        return Leverage.of(energies, self._centred_totals(), self._masses, self.rows.dim, self.firsts is not None)

    def _centred_totals(self) -> Tensor:
        """(k,) float64 what there is to be captured: sum of w |x - mean|^2 of each cluster."""
        means = self.means()
        return self._energies if means is None else self._energies - self._masses * means.square().sum(1)

    def improve(self, subspaces: Subspaces, times: int = 1) -> tuple[Subspaces, Tensor, float]:
        """Steps of orthogonal iteration on every cluster's scatter S: the rows of ``V S``, made orthonormal.

        None ever raises the cost of the clusters as they are. A step costs a fraction of an eigendecomposition, and
        converges for every leading part of the basis at once.

        Args:
            subspaces: of any ranks.
            times: number of steps.

        Returns:
            better subspaces of the same ranks, with the clusters' means; (k, j) the energy that each direction of the
            bases before the last step captures; and the cost of those bases with these means and labels.
        """
        means, totals = self.means(), self._centred_totals()
        team, bases = self.rows.team, subspaces.bases
        mine = team.share(self.n_clusters)
        energies = torch.zeros(bases.shape[:2], dtype=torch.float64, device=self.rows.device)
        for step in range(1, times + 1):
            given, products = bases[mine], self._products(bases, means)[mine]
            if step == times:
                # Over the lengths, which are 1 but for rounding, and that would show in a cost that hardly falls.
                energies[mine] = (given * products).sum(2, dtype=torch.float64)
                energies[mine] /= given.square().sum(2, dtype=torch.float64)
            bases = torch.zeros_like(bases)
            bases[mine] = orthonormal_rows(products)
            if step == times or self.grams is None:  # with Gram matrices only their owners go on from these
                team.exchange(bases)
        team.exchange(energies)
        captured = sum(energies[cluster, :rank].sum() for cluster, rank in enumerate(subspaces.ranks))
        cost = max(float(totals.sum() - captured), 0.0)
        means = None if means is None else means.to(bases.dtype)
        return Subspaces(bases, means, subspaces.ranks), energies, cost

    def _products(self, bases: Tensor, means: Tensor | None) -> Tensor:
        """(k, j, d) each basis times its cluster's scatter; of this process's share of the clusters."""
        products = torch.zeros_like(bases)
        team = self.rows.team
        if self.grams is not None:
            share = range(self.n_clusters)[team.share(self.n_clusters)]
            dtype = torch.float64 if bases[0].numel() <= SMALL else bases.dtype
            for cluster, scatter in zip(share, self.grams, strict=True):
                if means is not None:
                    scatter = scatter - self._masses[cluster] * torch.outer(means[cluster], means[cluster])
                products[cluster] = (bases[cluster].to(dtype) @ scatter.to(dtype)).to(bases.dtype)
            return products
        for cluster, members in enumerate(rows_by_cluster(self.labels, self.n_clusters)):
            for which, centred in centred_blocks(self.rows, members, means, cluster):
                products[cluster] += self.rows.weighted(centred @ bases[cluster].T, which).T @ centred
        return team.sum(products)


def fit_subspaces(
    rows: Rows, labels: Tensor, n_clusters: int, rank: int, affine: bool = False
) -> tuple[Subspaces, Tensor]:
    """The best subspace of each group of rows, by weighted squared error, exactly: float64 from the rows on.

    Args:
        rows: n rows.
        labels: (n,) int64, the group of each.
        rank: of all subspaces.
        affine: also fit a mean to each group.

    Returns:
        the subspaces and their spectra (k, d) float64: all eigenvalues of each group's scatter, largest first. The
        squared error of a group at any rank r is ``spectra[c, r:].sum()``.
    """
    d, team = rows.dim, rows.team
    bases = torch.zeros(n_clusters, rank, d, dtype=rows.dtype, device=rows.device)
    spectra = torch.zeros(n_clusters, d, dtype=torch.float64, device=rows.device)
    means = torch.zeros(n_clusters, d, dtype=torch.float64, device=rows.device) if affine else None
    everybody = rows.whole
    groups = rows.gather(labels)
    # One Gram matrix at a time, so that many clusters need no more memory than one; each process makes its share.
    for cluster in range(n_clusters)[team.share(n_clusters)]:
        members = (groups == cluster).nonzero().squeeze(1)
        gram = torch.zeros(d, d, dtype=torch.float64, device=rows.device)
        moment = torch.zeros(d + 1, dtype=torch.float64, device=rows.device)  # sum of w x, and of w
        for where, block in everybody.blocks(d, members, torch.float64):
            weighted = everybody.weighted(block, members[where])
            _add_lower_triangle(gram, weighted, block)  # the eigensolver reads no more
            moment[:d] += weighted.sum(0)
        moment[d] = len(members) if everybody.weights is None else everybody.weights[members].sum(dtype=torch.float64)
        if means is not None and moment[d] > 0:
            means[cluster] = moment[:d] / moment[d]
            gram -= moment[d] * torch.outer(means[cluster], means[cluster])
        values, vectors = _eigenvectors(gram)
        bases[cluster] = vectors[:, d - rank :].flip(1).T
        spectra[cluster] = values.flip(0).clamp_(min=0)
    means = None if means is None else team.exchange(means).to(rows.dtype)
    return Subspaces.of(team.exchange(bases), means), team.exchange(spectra)


def _add_lower_triangle(gram: Tensor, weighted: Tensor, block: Tensor) -> None:
    """Add ``weighted.T @ block``, which is symmetric, in strips that end at the diagonal or a little right of it."""
    for last in range(_STRIP, len(gram) + _STRIP, _STRIP):
        strip = slice(last - _STRIP, last)
        gram[strip, :last] += weighted[:, strip].T @ block[:, :last]


def _eigenvectors(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Ascending eigenvalues and orthonormal eigenvectors of a symmetric float64 matrix.

    GPU eigensolvers have, in rare cases, failed or returned vectors that are not orthonormal; those go to the CPU.
    """
    if gram.is_cuda:
        try:
            values, vectors = torch.linalg.eigh(gram)
            identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
            if (vectors.T @ vectors - identity).abs().max() < 1e-9:
                return values, vectors
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            pass
        values, vectors = torch.linalg.eigh(gram.cpu())
        return values.to(gram.device), vectors.to(gram.device)
    return torch.linalg.eigh(gram)
