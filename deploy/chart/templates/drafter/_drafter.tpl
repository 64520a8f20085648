{{/* Whether a pool's method has a part, (dict "with" "values"); empty where it has not. */}}
{{- define "paceline.drafts" -}}
{{- if has .with (splitList "+" (default "" .values.settings.method)) }}yes{{ end -}}
{{- end -}}

{{- define "paceline.drafterEnv" -}}
{{- include "paceline.commonSettings" . }}
{{- if eq .values.variant "neural" }}
{{- include "paceline.settings" (dict "service" "drafter" "settings" (dict "model" .root.Values.model.source)) }}
{{- include "paceline.modelCacheEnv" .root }}
{{- include "paceline.kernelEnv" . }}
{{- end }}
{{- end -}}

{{- define "paceline.drafterMounts" -}}
{{- if eq .values.variant "neural" -}}
{{ include "paceline.modelMount" . }}
- {name: kernels, mountPath: /var/cache/paceline/kernels}
{{- end }}
{{- if ne .values.weights.type "none" }}
- {name: weights, mountPath: {{ .values.weights.mountPath }}, readOnly: true}
{{- end }}
{{- include "paceline.certificateMounts" . }}
{{- end -}}

{{- define "paceline.drafterVolumes" -}}
{{- if eq .values.variant "neural" -}}
{{ include "paceline.modelVolume" . }}
{{ include "paceline.kernelVolume" .values.kernelCache }}
{{- end }}
{{ include "paceline.weightsVolume" .values.weights }}
{{- include "paceline.certificateVolumes" . }}
{{- end -}}

{{/* Init containers of a pool; those from the text fetch nothing. */}}
{{- define "paceline.drafterInitContainers" -}}
{{- if eq .values.variant "neural" -}}
{{ include "paceline.initContainers" . }}
{{- else -}}
{{- with .values.extraInitContainers }}{{ toYaml . }}{{ end -}}
{{- end -}}
{{- end -}}

{{/* What no schema can say of a pool: fails with what to do. (dict "root" "pool" "values"). */}}
{{- define "paceline.validDrafters" -}}
{{- $values := .values -}}
{{- $name := printf "drafterPools.%s" .pool -}}
{{- $head := include "paceline.drafts" (dict "with" "eagle" "values" $values) -}}
{{- $model := include "paceline.drafts" (dict "with" "draft" "values" $values) -}}
{{- if and (or $head $model) (ne $values.variant "neural") -}}
{{- fail (printf "%s.settings.method is %s, which runs models: set %s.variant to neural" $name $values.settings.method $name) -}}
{{- end -}}
{{- if and $model (not $values.settings.draftModel) -}}
{{- fail (printf "%s.settings.method has draft: name the model in %s.settings.draftModel" $name $name) -}}
{{- end -}}
{{- if $head -}}
{{- $kept := list -}}
{{- $pools := include "paceline.pools" (dict "root" .root "kind" "verifier") | fromYaml -}}
{{- range $pools }}{{ $kept = append $kept (default "" .settings.keepStates) }}{{ end -}}
{{- if and $pools (not (compact $kept)) -}}
{{- fail (printf "%s.settings.method has eagle, which reads the target's hidden states: set verifier.settings.keepStates to eagle" $name) -}}
{{- end -}}
{{- end -}}
{{- if and (eq $values.weights.type "persistentVolumeClaim") (not $values.weights.existingClaim) -}}
{{- fail (printf "%s.weights.type is persistentVolumeClaim: name the claim in %s.weights.existingClaim" $name $name) -}}
{{- end -}}
{{- if and (eq $values.weights.type "hostPath") (not $values.weights.hostPath) -}}
{{- fail (printf "%s.weights.type is hostPath: name the path in %s.weights.hostPath" $name $name) -}}
{{- end -}}
{{- end -}}
